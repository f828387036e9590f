"""Letters that look like another: which Latin letter each of them looks like.

Taken from the single letters of Unicode's confusables (UTS #39, version 15.1) that NFKC leaves as they are; added
are Latin small capitals, white letters on black, and small Cyrillic and Greek letters that pass for Latin ones.
"""

from __future__ import annotations

__all__ = ["LOOKS_LIKE"]

_LOOKALIKES = {
    "A": "ΑАᎪᗅꓮ𐊠𖽀🅐🅰",
    "B": "ΒВᏴᗷꓐꞴ𐊂𐊡𐌁🅑🅱",
    "C": "СᏟⲤꓚ𐊢𐌂𐐕𐔜𑣩𑣲🅒🅲",
    "D": "Ꭰᗞᗪꓓ🅓🅳",
    "E": "ΕЕᎬⴹꓰ𐊆𑢦𑢮🅔🅴",
    "F": "ϜᖴꓝꞘ𐊇𐊥𐔥𑢢𑣂🅕🅵",
    "G": "ԌᏀᏳꓖ🅖🅶",
    "H": "ΗНᎻᕼⲎꓧ𐋏🅗🅷",
    "I": "ΙІӀ🅘🅸",
    "J": "ͿЈᎫᒍꓙꞲ🅙🅹",
    "K": "ΚКᏦᛕⲔꓗ𐔘🅚🅺",
    "L": "ᏞᒪⳐꓡ𐐛𐔦𑢣𑢲𖼖🅛🅻",
    "M": "ΜϺМᎷᗰᛖⲘꓟ𐊰𐌑🅜🅼",
    "N": "ΝⲚꓠ𐔓🅝🅽",
    "O": "ΟОՕ০ଠ୦ዐⲞⵔ〇ꓳ𐊒𐊫𐐄𐓂𐔖𑓐𑢵𑣠🅞🅾",
    "P": "ΡРᏢᑭⲢꓑ𐊕🅟🅿",
    "Q": "ⵕ🅠🆀",
    "R": "ƦᎡᏒᖇꓣ𐒴𖼵🅡🆁",
    "S": "ЅՏᏕᏚꓢ𐊖𐐠𖼺🅢🆂",
    "T": "ΤТᎢⲦꓔ𐊗𐊱𐌕𑢼𖼊🅣🆃",
    "U": "Սሀᑌꓴ𐓎𑢸𖽂🅤🆄",
    "V": "Ѵ۷Ꮩᐯⴸꓦꛟ𐔝𑢠𖼈🅥🆅",
    "W": "ԜᎳᏔꓪ𑣦𑣯🅦🆆",
    "X": "ΧХᚷⲬⵝꓫꞳ𐊐𐊴𐌗𐌢𐔧𑣬🅧🆇",
    "Y": "ΥУҮᎩᎽⲨꓬ𐊲𑢤𖽃🅨🆈",
    "Z": "ΖᏃꓜ𐋵𑢩𑣥🅩🆉",
    "a": "ɑαаᴀ",
    "b": "ƄʙβЬвᏏᑲᖯ",
    "c": "сᴄⲥꮯ𐐽",
    "d": "ԁᏧᑯᴅꓒ",
    "e": "εеҽᴇꬲ",
    "f": "քẝꜰꞙꬵ",
    "g": "ƍɡɢցᶃ",
    "h": "ʜнһհᏂ",
    "i": "ıɩɪιіӏᎥꙇꭵ𑣃",
    "j": "ϳјᴊ",
    "k": "κкᴋ",
    "l": "Ɩǀʟ۱ᛁⲒⵏꓲ𐊊𐌉𐌠𖼨",
    "m": "мᴍ",
    "n": "ɴηпոռ",
    "o": "οσоօ۵०੦૦௦౦೦ഠ൦๐໐ဝ၀ჿᴏᴑⲟꬽ𐐬𐓪𑣈𑣗",
    "p": "ρрᴘⲣ",
    "q": "ԛգզꞯ",
    "r": "ʀгᴦⲅꭇꭈꮁ",
    "s": "ƽѕꜱꮪ𐑈𑣁",
    "t": "τтᴛ",
    "u": "ʋυսᴜꞟꭎꭒ𐓶𑣘",
    "v": "νѵᴠꮩ𑜆𑣀",
    "w": "ɯωѡԝաᴡꮃ𑜊𑜎𑜏",
    "x": "хᕁᕽ",
    "y": "ɣʏγуүყᶌỿꭚ𑣜",
    "z": "ᴢꮓ𑣄",
}

LOOKS_LIKE = {letter: latin for latin, letters in _LOOKALIKES.items() for letter in letters}
"""Letter → the ASCII letter that it looks like."""
