"""Which items are said to have changed most, of answers whose order is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.tasks.base import Batch, ItemAnswer
from engine.tasks.changes import Watch, differ, pictured


class Words:
    """Answers as they are given, with their scores."""

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        return [ItemAnswer(word, "right", score) for word, score in raw]

    def picture(self, batch: Batch, index: int) -> None:
        return None


def test_items_that_lost_most_come_first_and_all_that_changed_are_counted() -> None:
    watch = Watch(Words(), most=3)  # type: ignore[arg-type]
    same, lost, little, won = ("a", 1.0), ("b", 0.0), ("c", 0.9), ("d", 2.0)
    watch.add(Batch(()), [same, same, same], [same, little, won])
    watch.add(Batch(()), [same, same], [lost, little])
    found = watch.changes()
    assert found is not None and (found.items, found.changed, found.worse, found.better) == (5, 4, 3, 1)
    assert [row.place for row in found.rows] == [3, 1, 4] and found.rows[0].lost == 1.0


def test_a_task_without_answers_of_items_has_no_changes() -> None:
    class Nothing(Words):
        def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
            return ()

    watch = Watch(Nothing())  # type: ignore[arg-type]
    watch.add(Batch(()), [], [])
    assert watch.changes() is None


def test_masks_of_one_pixel_and_boxes_of_a_pixel_differ() -> None:
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    other = mask.clone()
    other[0, 0] = 1
    assert differ(ItemAnswer("x", mask=mask), ItemAnswer("x", mask=other)) and not differ(
        ItemAnswer("x", mask=mask), ItemAnswer("x", mask=mask)
    )
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert differ(ItemAnswer("x", boxes=box), ItemAnswer("x", boxes=box + 1)) and not differ(
        ItemAnswer("x", boxes=box), ItemAnswer("x", boxes=box + 0.1)
    )


def test_a_picture_is_made_small_with_its_mask_and_its_boxes() -> None:
    image = torch.zeros(3, 96, 192, dtype=torch.uint8)
    image[0, :, 96:] = 200
    mask = torch.zeros(96, 192, dtype=torch.uint8)
    mask[:, 96:] = 5
    answer = ItemAnswer("x", mask=mask, boxes=torch.tensor([[96.0, 0.0, 400.0, 96.0]]), classes=torch.tensor([3]))
    found = pictured(image, 7, answer, ItemAnswer("y"))
    assert found is not None and (found.place, found.width, found.height) == (7, 48, 24)
    assert found.rgb[:3] == b"\0\0\0" and found.rgb[47 * 3 : 48 * 3] == bytes([200, 0, 0]) and "quantized" not in found.looks
    look = found.looks["fp32"]
    assert look.mask[:24] == b"\0" * 24 and look.mask[24:48] == b"\5" * 24
    assert [(b.left, b.top, b.right, b.bottom, b.kind) for b in look.boxes] == [(24, 0, 47, 23, 3)]
