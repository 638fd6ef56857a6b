"""The keys that plan a strategy as a whole: from a preset, or from a recipe file; and that write one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.recipe.decisions import Strategy
from qtui.draft import Draft
from qtui.screens import strategy_files as files
from qtui.screens.base import StageScreen
from qtui.screens.strategy_presets import preset_texts, presets
from qtui.strategy_rules import rules_of


class Recipes(StageScreen):
    """To be mixed into the screen of the strategy, which shows the draft and says what became of it."""

    if TYPE_CHECKING:
        _news: str

        @property
        def _draft(self) -> Draft | None: ...

        def _change(self, draft: Draft, note: str = "", news: str = "") -> None: ...

    def do_preset(self) -> None:
        if (draft := self._draft) is not None:
            self.choose("preset ─ all layers anew", presets(draft, rules_of(self.state.run.recipe)), draft.preset, self._preset)

    def _preset(self, name: str | None) -> None:
        if name and (draft := self._draft) is not None:
            self._replan(name, rules_of(self.state.run.recipe), f"Preset {name}: {preset_texts(draft)[name]}. u takes it back.")

    def _replan(self, preset: str, rules: files.Rules, news: str) -> None:
        """All layers as preset and rules ask: by the engine where its question is open, found here where it is not."""
        draft = self._draft
        if draft is None:
            return
        if draft.planned_from(preset, rules) is draft:
            self.explain("Every layer is so already")
        elif self.state.asking == "quantize":
            self._news = news
            self.session.answer(Strategy(preset, tuple(rules), go=False))
        else:
            self._change(draft.planned_from(preset, rules), news=news)
        self.qtui.refresh_state()

    def do_open(self) -> None:
        self.ask(
            "open a recipe", "A recipe file; its preset and rules are taken, nothing else:", "", files.wrong_source, self._open, paths=True
        )

    def _open(self, value: str | None) -> None:
        if value:
            preset, rules = files.load(value)
            self._replan(preset, rules, f"The strategy of {value}: preset {preset}, {len(rules)} rules. u takes it back.")

    def do_save(self) -> None:
        if not self.state.run.recipe:
            self.explain("What this run was asked is not in its files: its strategy alone is no recipe")
            return
        text = "The file to write; qtui run --recipe FILE does it again:"
        self.ask("save the recipe", text, files.default_name(self.state.run), files.wrong_target, self._save, paths=True)

    def _save(self, value: str | None) -> None:
        if not value:
            return
        path = Path(value).expanduser()
        if path.exists():
            self.confirm("replace?", f"{path} exists.", "replace it", "keep it", lambda yes: self._write(path) if yes else None)
        else:
            self._write(path)

    def _write(self, path: Path) -> None:
        if (draft := self._draft) is None:
            return
        if wrong := files.save(path, self.state.run, draft):
            self.explain(wrong)
        else:
            self._news = f"Saved as {path}: qtui run --recipe {path} does it again."
            self.say(self._news)
