"""The keys that edit layers: each is one edit of the draft."""

from __future__ import annotations

from qtui.edits import EditName


class EditKeys:
    """A screen with these has ``edit``, which carries an edit out on what is marked or under the cursor."""

    def edit(self, name: EditName) -> None:
        raise NotImplementedError

    def pick(self, name: EditName) -> None:
        """Show all that an edit can make of them, to choose from."""
        raise NotImplementedError

    def do_pick_weights(self) -> None:
        self.pick("weights")

    def do_pick_activations(self) -> None:
        self.pick("activations")

    def do_pick_granularity(self) -> None:
        self.pick("granularity")

    def do_pick_rounding(self) -> None:
        self.pick("rounding")

    def do_weights(self) -> None:
        self.edit("weights")

    def do_activations(self) -> None:
        self.edit("activations")

    def do_granularity(self) -> None:
        self.edit("granularity")

    def do_rounding(self) -> None:
        self.edit("rounding")

    def do_observer(self) -> None:
        self.edit("observer")

    def do_symmetric(self) -> None:
        self.edit("symmetric")

    def do_keep(self) -> None:
        self.edit("keep")

    def do_reset(self) -> None:
        self.edit("reset")
