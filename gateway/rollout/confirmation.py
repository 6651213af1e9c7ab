"""Decide between the store's state and that of one gateway."""

from gateway.rollout.policy import Phase, State, controller
from gateway.rollout.stored_format import Document


def confirmed(own: Document, stored: Document) -> Document | None:
    """Return the document to store for an unconfirmed rollback.

    Others may have changed the rollout since. None if they ended it or began another one: theirs is in force then.

    Args:
        own: unconfirmed, in force at this gateway only.
        stored: in force at the others.
    """
    assert own.state is not None
    if stored.state == own.state:  # an earlier attempt succeeded, although its reply was lost
        return Document(version=stored.version + 1, state=own.state, unknown=stored.unknown)
    if stored.version < own.version:
        return Document(version=own.version, state=own.state, unknown=own.unknown)
    if stored.state is None or stored.state.id != own.state.id or not stored.state.is_live:
        return None
    change = own.state.changes[-1]
    return stored.followed_by(controller.roll_back(stored.state, change.reason, change.at_s, change.findings))


def may_decide(document: Document, following: State) -> bool:
    """Return whether a gateway with this document may decide so.

    A newer gateway may have asked for more than this one judges. So this one leaves steps to it, and only rolls back.
    """
    state = document.state
    is_step = state is not None and (following.phase, following.step) != (state.phase, state.step)
    return not document.unknown or not is_step or following.phase is Phase.ROLLED_BACK
