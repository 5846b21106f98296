"""State dicts that were saved elsewhere, matched to a network tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..hub.safety import broken_files, printable
from .loading import LOADING
from .processing_parameters import LayoutError, NonFiniteParametersError, all_finite

COUNTER = "num_batches_tracked"  # of BatchNorm: old files lack it, and no network in evaluation mode reads it
StateDict = Mapping[str, torch.Tensor]

SHOWN = 3  # tensors that a message names of each kind


def match_state_dict(model: PreTrainedModel, given: StateDict) -> dict[str, torch.Tensor]:
    """Returns the tensors under the names that they have in `model.state_dict()`, each of its shape and dtype there.

    A prefix that all names have in common, such as `module.` of `DataParallel`, is removed or added. Names that
    transformers saves differently from how the network has them are converted by transformers. Of tied tensors one
    is enough.

    Args:
        model: The network, on the processor.
        given: Its tensors as they were saved.

    Raises:
        LayoutError: If tensors are missing or surplus, have another shape or dtype, or tied ones differ.
        NonFiniteParametersError: If a value is NaN or infinite.
    """
    expected = model.state_dict()
    found = _without_prefix(expected, given)
    if _missing(expected, found) and not _missing(expected, converted := _convert(model, found)):
        found = converted
    _require_fit(type(model).__name__, expected, found)
    broken = [name for name, tensor in found.items() if tensor.is_floating_point() and not all_finite(tensor)]
    if broken:
        raise NonFiniteParametersError(
            f"{_some(broken)} {'has' if len(broken) == 1 else 'have'} values that are NaN or infinite; parameters "
            "must be finite."
        )
    return found


def _without_prefix(expected: StateDict, given: StateDict) -> dict[str, torch.Tensor]:
    """Returns the tensors with the prefix removed or added with which most names are those expected."""
    removed, added = _prefixes(given), _prefixes(expected)
    candidates = [(old, new) for old in removed for new in added]

    def count(change: tuple[str, str]) -> int:
        old, new = change
        return sum(new + name[len(old) :] in expected for name in given)

    old, new = max(candidates, key=count)  # the first of several, which changes least
    return {new + name[len(old) :]: tensor for name, tensor in given.items()}


def _prefixes(names: Iterable[str]) -> list[str]:
    """Returns the beginnings up to a dot that all names have in common, the shortest, which is empty, first."""
    names, prefixes = list(names), [""]
    parts = names[0].split(".")[:-1] if names else []
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end]) + "."
        if not all(name.startswith(prefix) for name in names):
            break
        prefixes.append(prefix)
    return prefixes


def _missing(expected: StateDict, found: StateDict) -> list[str]:
    """Returns the names that are not there, but for counters and tensors that are tied to one that is there."""
    places = {expected[name].data_ptr() for name in found if name in expected}
    absent = (name for name in expected if name not in found and not name.endswith(COUNTER))
    return [name for name in absent if expected[name].data_ptr() not in places]


def _convert(model: PreTrainedModel, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors as transformers loads them into the network; as given if it cannot, or would cast them."""
    if {t.dtype for t in given.values()} - {t.dtype for t in model.state_dict().values()}:
        return given
    with LOADING:
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)  # it lists what does not fit, which is stated in an error here
        try:
            with broken_files("The network"):
                loaded, report = type(model).from_pretrained(
                    None, config=model.config, state_dict=given, output_loading_info=True
                )
        except ValueError:
            return given
        finally:
            logging.set_verbosity(verbosity)
    fits = not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    return dict(loaded.state_dict()) if fits else given


def _require_fit(network: str, expected: StateDict, found: StateDict) -> None:
    problems = []
    if missing := _missing(expected, found):
        problems.append(f"{_some(missing)} missing")
    if surplus := [name for name in found if name not in expected]:
        problems.append(f"{_some(surplus)} surplus")
    first: dict[int, str] = {}  # of the names of tied tensors
    for name, tensor in found.items():
        if name in expected and (has := _describe(tensor)) != (needs := _describe(expected[name])):
            problems.append(f"{name!r} is {has} instead of {needs}")
        elif name in expected and expected[name].numel():
            tied = first.setdefault(expected[name].data_ptr(), name)
            if tied != name and not problems and not torch.equal(tensor, found[tied]):
                problems.append(f"{name!r} differs from {tied!r}, to which {network} ties it")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise LayoutError(
            f"The tensors are not those of this {network}, which has {len(expected)}: "
            f"{'; '.join(problems[:SHOWN])}{more}."
        )


def _describe(tensor: torch.Tensor) -> str:
    kind = "" if tensor.layout == torch.strided and tensor.device.type == "cpu" else " without plain numbers"
    return f"{tuple(tensor.shape)} {tensor.dtype}{kind}"


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(printable(name)[:200]) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
