"""Users: who they are and what they may write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import Refusal
from .messages import Answer, Request
from .model import User, now
from .routing import route

if TYPE_CHECKING:
    from .hub import Hub


def need_user(user: User | None) -> User:
    """Returns the user, or refuses the anonymous."""
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return user


def need_write(user: User | None, namespace: str) -> User:
    """Returns the user, or refuses one who may not write to this namespace."""
    user = need_user(user)
    if not user.owns(namespace):
        raise Refusal(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
    if user.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
    return user


@route("GET", r"/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Answer:
    """Describes the owner of the token."""
    user = need_user(request.user)
    organizations = [
        {"type": "org", "id": org, "name": org, "fullname": org, "roleInOrg": "admin"} for org in user.orgs
    ]
    return Answer(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "email": f"{user.name}@example.org",
            "emailVerified": True,
            "isPro": False,
            "canPay": False,
            "orgs": organizations,
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "test", "role": user.role, "createdAt": now()},
            },
        }
    )
