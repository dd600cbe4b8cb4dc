"""The characters of the glyphs source: which ones, from which font, in which split.

How they were chosen, so that the list can be made again: held-out scripts first, then by code
point, every letter, number, mark of punctuation and symbol of a script's Unicode blocks, without
modifier letters and without those that Unicode decomposes (accented ones). A character was left
out when it is a bar (more than five times as long as wide), or when it looks like one that is
already in: drawn with its longer side 24 pixels in the middle of 32×32, blurred by one pixel, the
cosine of the two pictures reaches 0.92 for some quarter turn and some shift by 0 or ±2 pixels. So
Latin A is in but neither Greek Alpha nor Cyrillic A, and of Canadian syllables that are one
another's turned copies there is one. Characters that look like their own turned copy (O) are in.

The outcome is a list, and not computed anew, so that it does not hang on the version of a font
renderer.
"""

from dataclasses import dataclass
from typing import final

__all__ = ["SCRIPTS", "Script"]


@final
@dataclass(frozen=True, kw_only=True)
class Script:
    """The characters of one script.

    Attributes:
        name: its name, the first half of a class name.
        split: the split that all of it belongs to.
        font: file of the font, without `.ttf`.
        ranges: code points in hexadecimal, `first` or `first-last`, separated by spaces.
    """

    name: str
    split: str
    font: str
    ranges: str

    @property
    def characters(self) -> tuple[str, ...]:
        """The characters, by code point."""
        ends = (part.split("-") for part in self.ranges.split())
        return tuple(
            chr(point) for end in ends for point in range(int(end[0], 16), int(end[-1], 16) + 1)
        )


SCRIPTS = (
    Script(
        name="Georgian",
        split="test",
        font="DejaVuSans",
        ranges=(
            "10A0-10AE 10B0 10B2 10B4-10B5 10B8-10BD 10BF-10C5 10D0-10DC 10DE-10E7 10EA-10EB "
            "10ED 10EF 10F1-10F2 10F4-10F5 10F7-10F8 10FB 2D00-2D09 2D0B 2D0E-2D0F 2D12-2D13 "
            "2D15 2D17-2D19 2D1C-2D1D 2D1F 2D21-2D25"
        ),
    ),
    Script(
        name="Armenian",
        split="test",
        font="DejaVuSans",
        ranges=(
            "531-539 53B 53D-541 543-545 547 549-54C 54E-550 552 554-556 55A-55C 55E-55F "
            "561-562 564-565 568-56F 571 573-575 577 579 57B-57C 57E-57F 581-584 586"
        ),
    ),
    Script(
        name="Tifinagh",
        split="test",
        font="DejaVuSans",
        ranges=(
            "2D30-2D31 2D33 2D36-2D37 2D3B-2D3F 2D41 2D43-2D4E 2D50 2D52-2D55 2D58 2D5B-2D5C "
            "2D5E-2D64"
        ),
    ),
    Script(
        name="Lao",
        split="test",
        font="DejaVuSans",
        ranges=(
            "E81-E82 E84 E87-E88 E8A E8D E94 E96-E97 E99-E9E EA1-EA3 EA5 EA7 EAA-EAB EAE-EB0 "
            "EBD EC1-EC4 ED1-ED4 ED6-ED9"
        ),
    ),
    Script(
        name="NKo",
        split="test",
        font="DejaVuSans",
        ranges="7C2-7C7 7C9 7CC-7CF 7D1-7D2 7D4-7DB 7DD-7DF 7E2-7E5",
    ),
    Script(
        name="Greek",
        split="val",
        font="DejaVuSans",
        ranges=(
            "370 372-373 37B 393 396-397 39A 39C-39E 3A1 3A5 3A8 3B1-3B2 3B5-3B6 3B8 3BA-3BE "
            "3C0 3C2 3C4 3C6-3C7 3CF 3D7-3D8 3DB 3DD-3E1 3F6-3F7 3FA-3FB"
        ),
    ),
    Script(
        name="Hebrew",
        split="val",
        font="DejaVuSans",
        ranges="5D0-5D2 5D4 5D9-5DA 5DC 5DE 5E2 5E5-5E9",
    ),
    Script(
        name="Arabic",
        split="val",
        font="DejaVuSans",
        ranges=(
            "621 628-62A 62C 62E-633 635 637 639-63A 641-649 660-662 664-665 669-66B 66D 66F "
            "679 67C 681 688-689 68B 68F 691-693 695-696 698 6A0 6A2 6A8-6AA 6AD-6AF 6B2 "
            "6B5-6B6 6B8-6B9 6BB 6BE 6C6 6CE 6D0 6F4 6F6"
        ),
    ),
    Script(
        name="Old_Italic",
        split="val",
        font="DejaVuSans",
        ranges="10300 10302 10304 1030A 1030C-1030E 10310 10312-10317 10319-1031B 1031E 10323",
    ),
    Script(
        name="Latin",
        split="train",
        font="DejaVuSans",
        ranges=(
            "52 57 5C 61-62 64-66 6B 74 79 7B 7E A2-A5 A7 A9 AB AE B1 B6 BF C6 D0 D7 DF E6 F8 "
            "126-127 141-142 14B 152-153 166 181-182 184 187-188 18A 193-195 198 19C-19D "
            "1A2-1A7 1AA-1AC 1AE 1B1-1B2 1B4 1B7-1B8 1BA 1BD-1BE 1E4 1F6 21C 221-224 235-236 "
            "238 23A-23C 23E-242 246-247 24D-24E 255 258 25A 25D-25E 264 267-268 26C 26E 271 "
            "278 27B 27D-27F 281-282 286 289 290-291 293-295 29B 29D-29E 2A0 2A3-2A4 2A6-2AD "
            "1D03 1D16 1D2B 1D7D 1D85 2C63-2C68 2C6B 2C6E 2C71-2C72 2C74 2C7A A722 A726 "
            "A728-A729 A72B A732 A734 A736-A739 A73D A746-A747 A74B A752-A753 A782 A789-A78A "
            "A78D A790-A791 A7A0 A7A6 A7A8 A7AA A7FF"
        ),
    ),
    Script(
        name="Cyrillic",
        split="train",
        font="DejaVuSans",
        ranges=(
            "402 409-40B 40F 414 416 426 429 42B 42E-42F 44B 452 45B 460 462-464 466 468 46A "
            "46C 46E 470-471 478-479 47C 47E 480 482 48A 48D 490 492 494 498 49B 4A0 4A4 4A6 "
            "4A8 4B1 4B3-4B4 4B6 4B8 4BC 4BF 4C3 4C5 4CB 4CD 4F6 4FA-4FB 4FD-4FE 502-506 "
            "508-509 50E-50F 512 514 516-519 520 522 A64C-A64D A650 A656-A657 A662 A664 A666 "
            "A66E A68B A694"
        ),
    ),
    Script(
        name="Coptic",
        split="train",
        font="DejaVuSans",
        ranges="3E2 3E6-3E7 3E9 3EC",
    ),
    Script(
        name="Canadian_Syllabics",
        split="train",
        font="DejaVuSans",
        ranges=(
            "1402 1404-1406 140B 1410 1412-1413 1415 1420-1421 1425-1426 142A-142C 142E 1432 "
            "1434 1439 143C 143E 1441 1445 144D 144F-1450 1456-1457 145D 145F-1460 1465 1467 "
            "1469 146C 146E 1470 1473-1474 1477-1478 1480 1482 1485-1486 148A 1492-1493 1495 "
            "1497 149E-14A0 14A6 14A9 14AD-14AE 14B2 14B4-14B5 14B9-14BA 14C1 14C5 14CB-14CC "
            "14CE 14D2 14D4 14D8 14DB 14DE-14DF 14E1-14E2 14E5-14E9 14ED-14F0 14F2-14F3 14F5 "
            "14F7-14F9 1501 1503-1504 1510-1513 151C-151D 1521 1525-1529 152B 152E-1532 153D "
            "1542-1543 1545 1549 154C 1550 1553 1555-155A 155E-155F 1562-1567 1574-1575 1578 "
            "157E-157F 1581-1583 1585 158A-158B 158E-158F 1591-1593 1595-1596 15A2-15A3 "
            "15A5-15A6 1647 166F-1671 1673 1675"
        ),
    ),
    Script(
        name="Script",
        split="train",
        font="STIXGeneral",
        ranges=(
            "1D49C 1D49E-1D49F 1D4A2 1D4A5-1D4A6 1D4A9-1D4AC 1D4AE-1D4B9 1D4BB 1D4BD-1D4C3 "
            "1D4C5-1D4CF"
        ),
    ),
    Script(
        name="Fraktur",
        split="train",
        font="STIXGeneral",
        ranges=(
            "1D504-1D505 1D507-1D50A 1D50E-1D514 1D516-1D517 1D51A-1D51C 1D51E-1D520 1D522 "
            "1D525-1D526 1D528 1D52A-1D52B 1D52D 1D52F-1D530 1D533-1D537"
        ),
    ),
    Script(
        name="Currency",
        split="train",
        font="DejaVuSans",
        ranges="20A0-20A2 20A5-20A7 20AA-20AC 20AF-20B0 20B2 20B4 20B8-20BA 20BD",
    ),
    Script(
        name="Operators",
        split="train",
        font="DejaVuSans",
        ranges=(
            "2201-2202 2205 2208 220A 2215 2217 221A-221B 221F-2221 222E 2231 2234 2237 "
            "2239-223B 223D-223F 2242 2245-2246 224C-2254 2257 2259-225B 225D 225F 2263-226A "
            "226C 2272-2273 2276-2277 227A 227C-227F 2286-2287 228A-228C 2291-2292 2295 2297 "
            "229A 22A0-22A2 22A7-22AB 22B0 22B4-22B6 22B9 22BB 22BE-22BF 22C4 22C7 22CB-22CC "
            "22D0 22D4-22D5 22D7-22D8 22DA 22E6-22E9 22F0 22F5-22F6 22F8-22FA 22FC 22FE"
        ),
    ),
    Script(
        name="Symbols",
        split="train",
        font="DejaVuSans",
        ranges=(
            "2600-2604 2606 2608-260A 260C-260F 2611 2614-2616 2618-261C 261E-2627 2629-262D "
            "262F-2630 2638-2639 263C-263D 263F-2640 2642-2647 2649-2652 2654-265A 265C-265D "
            "2660-2662 2664-2665 2667-2670 2672-2673 267A-267B 267D-267F 2681 2685-2686 "
            "268F-269C 269E 26A0-26A8 26AD-26B0 26B4-26B8 26C0-26C1"
        ),
    ),
    Script(
        name="Dingbats",
        split="train",
        font="DejaVuSans",
        ranges=(
            "2701-2704 2706-2709 270C-270F 2711 2713-2714 2716-271A 271E 2720-2721 2726-2727 "
            "2729 272B-272C 2730 2732 2735 273E-2740 2742 2746 2749-274A 274D 274F 275D "
            "2761-2762 2766-2768 276A 276E"
        ),
    ),
)
