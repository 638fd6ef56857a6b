"""What the graph's screen says: titles, the sentence about a node, everything about a node."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from engine.events.event import NodeRow, PairRow
from qtui.drawing.text import middle
from qtui.screens.graph_look import GLYPHS, MODULE, Look
from qtui.screens.graph_modules import module_details, module_sentence
from qtui.screens.graph_rows import delta, share
from qtui.stage_table import digit
from qtui.state import State
from qtui.subject import short_name
from qtui.text import plain

RULE = " ─ "
_LONG = 22
"""Cells of a module's path in a sentence."""


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of ``parts`` as fit, the first always."""
    kept = [part for part in parts if part]
    while len(kept) > 1 and len(RULE.join(kept)) > width:
        kept.pop()
    return RULE.join(kept)


def title(look: Look, count: str, width: int, before: bool = False) -> str:
    """The border's title; ``count`` is how many nodes are shown."""
    if look.folded:
        return fitting((f"Graph {'before' if before else 'after'} folding", f"{count} nodes"), width)
    if look.modular:
        return fitting(("Graph", f"{count} modules", "nothing to fold"), width)
    parts = ["Graph", f"{count} nodes", "of torch.export" if look.exported else ""]
    if look.phase == "working":
        parts.append("folding …")
    elif look.pairs is not None:
        chosen, can = len(look.with_fate("fold")), len(look.foldable)
        refused = len(look.with_fate("refused"))
        if not can:
            parts.append("no pair to fold")
        elif look.phase == "open":
            parts.append(f"{chosen} of {_pairs(can)} to fold")
        else:
            parts.append(f"{_pairs(can)} left for the conversion")
        parts.append(f"{refused} refused" if refused else "")
    return fitting(parts, width)


def subtitle(look: Look, width: int) -> str:
    """The border's lower line: what folding did, and how many warnings there are."""
    parts = []
    if look.folded and look.pairs is not None:
        done, later = look.with_fate("folded"), look.with_fate("later")
        parts.append(f"{len(look.traced)} → {len(look.fused)} nodes")
        parts.append(f"output changed by ≤ {delta(look.pairs.change)}" if look.pairs.change is not None else "")
        parts.append(_times(look))
        parts.append(f"{_pairs(len(done))} folded" + (f", {len(later)} later" if later else ""))
    warned = len(look.warnings)
    if warned:
        parts.insert(min(len(parts), 1), f"! {warned} {'warning' if warned == 1 else 'warnings'} (L)")
    return fitting(parts, width)


def effect(look: Look) -> str:
    """What folding did, as a sentence; empty while it is not done."""
    if not look.folded or look.pairs is None:
        return ""
    done = len(look.with_fate("folded"))
    later = look.with_fate("later")
    parts = [f"{len(look.traced)} nodes became {len(look.fused)}"]
    if look.pairs.change is not None:
        parts.append(f"the output changed by at most {delta(look.pairs.change)}")
    if times := _times(look):
        parts.append(f"{times} an image")
    rest = f" {_pairs(len(later))} left for the conversion." if later else ""
    keys = "n goes on." if rest else "b compares, n goes on to the strategy."
    return f"● {_pairs(done)} folded: {', '.join(parts)}.{rest} {keys}"


def sentence(look: Look, node: NodeRow | None) -> str:
    """What a node is, and what folding would do or did to it."""
    if look.phase == "working" and not look.folded:
        return f"Folding {_pairs(len(look.with_fate('fold', 'folded')))}; then both graphs are timed and the effect stands here."
    if node is None:
        return ""
    if warned := look.warning(node):
        return f"! {warned}"
    pair = look.pair(node.name)
    return _pair_sentence(look, pair) if pair is not None else _node_sentence(look, node)


def _pair_sentence(look: Look, pair: PairRow) -> str:
    fate = look.fate(pair)
    start = f"{GLYPHS[fate]} {middle(pair.conv, _LONG)} + {middle(pair.bn, _LONG)}"
    conv, bn = _short(pair.conv), _short(pair.bn)
    if fate == "refused":
        return f"{start} cannot be folded: {pair.reason}. {bn} stays a layer of its own."
    if fate == "folded":
        return f"{start} are one layer now: folding changed its output by at most {delta(pair.max_abs_delta or 0.0)}."
    if fate == "fold":
        return f"{start} fold into one layer: nothing else reads {conv}. space leaves it for the conversion, f folds all ◆."
    start = f"{start} stay apart for now: {bn} keeps its weights in training and is folded at the conversion."
    return start if look.phase == "closed" else f"{start} space folds it now."


def _short(path: str) -> str:
    last = path.rpartition(".")[2]
    return path if len(path) <= 16 else middle(path, 16) if last.isdigit() else last


def _node_sentence(look: Look, node: NodeRow) -> str:
    if node.opcode == MODULE:
        return module_sentence(look, node)
    size = f" ({node.shape})" if node.shape else ""
    if node.opcode == "placeholder":
        hint = "; N stands for the batch." if node.shape.startswith("N") else "."
        hint += " ◆ marks a pair that will be folded into one layer." if look.with_fate("fold") else ""
        return f"{node.name} is what goes into the model{size}{hint}"
    if node.opcode == "output":
        return f"The model gives back {' and '.join(look.inputs(node)) or node.args}."
    about = [f"{share(node.time_share)} % of the fp32 time"] if node.time_share is not None else []
    if node.params and look.params:
        about.insert(0, f"{node.params:,} parameters ({share(node.params / look.params)} %)")
    what = {
        "call_module": f"{node.name} is the module {node.target}"
        if node.target.replace(".", "_") != node.name
        else f"{node.target} is a module",
        "call_function": f"{node.name} calls {node.target}",
        "call_method": f"{node.name} calls the method {node.target}",
    }.get(node.opcode, f"{node.name} reads {node.target}")
    inputs = look.inputs(node)
    on = f" on {' and '.join(inputs[:2])}{' …' if len(inputs) > 2 else ''}" if inputs else ""
    return f"{what}{on}{': ' if about else ''}{', '.join(about)}. ⏎ tells everything about it."


def details(look: Look, node: NodeRow, before: bool = True) -> Text:
    """All fields in full, what reads it in the graph as traced or as folded, and what becomes of its pair."""
    if node.opcode == MODULE:
        return module_details(look, node)
    lines = [
        ("opcode", node.opcode), ("name", node.name), ("target", node.target), ("args", node.args), ("kwargs", node.kwargs),
        ("shape", node.shape), ("parameters", _parameters(look, node)),
        ("time", f"{share(node.time_share)} % of the fp32 time" if node.time_share is not None else ""),
        ("reads", ", ".join(look.inputs(node))), ("read by", ", ".join(look.readers(node.name, before))),
    ]  # fmt: skip
    text = Text()
    for label, value in lines:
        text.append(f"{label:<12}", "bold")
        text.append(f"{plain(value) or '–'}\n", "" if value else "dim")
    pairs = [pair for pair in look.rows if node.name in (pair.conv_node, pair.bn_node)]
    for pair in pairs:
        text.append(f"\n{plain(_pair_sentence(look, pair))}\n")
    if warned := look.warning(node):
        text.append(f"\n! {plain(warned)}\n")
    text.rstrip()
    return text


def empty(state: State, wanted: str) -> str:
    """What stands where there is no node to show."""
    run = state.run
    if run.traced:
        return f"No node holds “{wanted}”.\nEsc shows all."
    if state.job is not None and state.job.kind in ("run", "resume"):
        return f"{run.doing or 'Working'} …\nThe graph of {short_name(run.model) or 'the model'} stands here when it is traced."
    if "failed" in (run.status("model"), run.status("graph")):
        return "The run failed before there was a graph.\nL shows what happened; 1 goes back to the models."
    if run.directory:
        return f"This run kept no graph.\nA new run shows it: {digit('model')}, then n."
    return f"There is no graph yet.\nChoose a model ({digit('model')}) and press n."


def _parameters(look: Look, node: NodeRow) -> str:
    if not node.params:
        return ""
    return f"{node.params:,}" + (f", {share(node.params / look.params)} % of the model" if look.params else "")


def _times(look: Look) -> str:
    if look.pairs is None or look.pairs.ms_before is None or look.pairs.ms_after is None:
        return ""
    return f"{look.pairs.ms_before:.2f} → {look.pairs.ms_after:.2f} ms"


def _pairs(count: int) -> str:
    return f"{count} pair" if count == 1 else f"{count} pairs"
