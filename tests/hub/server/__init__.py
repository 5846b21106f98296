"""A Hugging Face Hub on loopback that speaks the real protocol to the real clients, and fails when it is told to.

Everything is kept in memory and in a temporary folder; each request is recorded in `hub.log`:

    with Hub() as hub:
        os.environ["HF_ENDPOINT"] = hub.url  # before huggingface_hub is imported
        hub.fail("status", method="PUT", status=500, times=2)
"""

from . import accounts, cards, cdn, lfs, listing, reading, refs, repos, writing, xet  # noqa: F401  (their routes)
from .faults import Fault
from .hub import Hub
from .messages import Record
from .model import User
from .xet import xet_works

__all__ = ["Fault", "Hub", "Record", "User", "xet_works"]
