"""HTML's tags by what they are in a text: furniture of the page, containers, parts of a line, blocks."""

from __future__ import annotations


def _named(words: str) -> frozenset[str]:
    return frozenset(words.split())


FURNITURE = _named(  # goes, with all that is in it
    "button svg style script noscript template head title meta link base iframe object embed canvas audio video"
    " select option datalist progress meter nav dialog map area param source track"
)
CONTAINERS = _named(
    "html body div section article main header footer aside figure figcaption details summary form fieldset legend"
    " address center dl dt dd hgroup search tbody thead tfoot tr td th caption colgroup col"
)
INLINE = _named(
    "span a abbr acronym b bdi bdo big cite data dfn em font i ins kbd label mark output picture q rp rt ruby samp"
    " small strong sub sup time tt u var wbr del s strike code img br input textarea math nobr blink basefont slot"
)
BLOCKS = _named("p pre ul ol li menu dir table blockquote hr h1 h2 h3 h4 h5 h6")
TAGS = FURNITURE | CONTAINERS | INLINE | BLOCKS
