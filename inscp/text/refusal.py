"""Refusals, recognised by their wording in en, zh, ja, fi and ar."""

from collections.abc import Iterable

import regex

from inscp.errors import UserError

SAYS_IT_IS_A_MODEL = (
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language)(?: language)? model\b",
    r"\bas an? (?:ai|artificial intelligence)(?: (?:assistant|chatbot))?, i\b",
    r"\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language) (?:language )?(?:model|assistant)\b",
    r"(?<![\"“「『'])\bi(?:'m| am) sorry,? but i (?:can(?:no|')t|am (?:not able|unable))\b",  # not quoted in a story
    r"(?:作為|作为|身為|身为)(?:一個|一个|一名)?.{0,6}(?:語言模型|语言模型|人工智慧|人工智能|(?<![a-z])AI(?![a-z]))"
    r"(?:語言模型|语言模型|模型|助手|助理|系統|系统|機器人|机器人|程式|程序)?\s*(?:[，,]|我)",
    r"(?<![a-z])(?:AI(?![a-z])|人工知能|言語モデル).{0,8}として.{0,12}(?:でき(?:ません|ない)|持って(?:いません|いない))",
    r"(?<![a-z])(?:AI(?![a-z])|言語モデル)(?:アシスタント)?なので",
    r"\b(?:teko[äa]lyn[äa]|kielimallina|tekoälymallina),? (?:minä|en|voin|olen|pystyn)\b",
    r"\bolen (?:vain |pelkkä )?(?:tekoäly|(?:suuri )?kielimalli)\b",
    r"(?:كنموذج لغوي|بصفتي نموذج|كذكاء اصطناعي|بصفتي ذكاء)",
)

REFUSES = (
    r"\bi(?:'m| am)? (?:can(?:no|')t|can not|won't|will not|must not|am (?:not able|unable)|do not feel comfortable)\b"
    r"(?! (?:believe|wait|imagine|help but|stop|stress|emphasi[sz]e|recommend (?:\w+ )+enough|say enough|thank|lie\b))",
    r"\bi(?:'m| am) (?:not able|unable|sorry(?! to hear| for your| that you| about)|not comfortable|not going)\b",
    r"\bi (?:have to|must) (?:decline|refuse)\b",
    r"\b(?:sorry|unfortunately|apologi[sz]e),? (?:but )?i\b",
    r"(?:很?抱歉(?!聽|听)|對不起|对不起|不好意思|恕(?:難|难|我[無无不])|拒絕|拒绝)",
    r"(?:^|[我，。！、,.!\s])(?:無法|无法|不能|不便)(?:[為为給给向][您你])?(?:提供|協助|协助|回答|回應|回应|幫[您你助忙]|帮[您你助忙]|滿足[您你]|满足[您你])",
    r"我(?:恐怕|真的|也|並|并)?(?:無法|无法|不能|不便|不會|不会)(?:[為为給给向][您你])?"
    r"(?:[給给][您你]|寫|写|撰|創[建作]|创[建作]|生成|執行|执行|討論|讨论|遵[守從从循]|給出|给出|參與|参与|這樣做|这样做|那樣做|那样做)",
    r"(?:申し訳(?:ありません|ございません)|ごめんなさい|すみませんが|できかねます|いたしかねます|致しかねます)",
    r"お(?:答え|応え|手伝い|力になる|教え|伝え).{0,8}(?:できません|できない)|応じ(?:られません|ることはできません)|差し控え",
    r"(?:提供|説明|回答|支援|対応|作成|案内|共有)(?:する|いたす|を行う)?(?:こと)?[はが]?でき(?:ません|ないの)",
    r"\b(?:pahoittelen|valitettavasti|anteeksi|en voi|en pysty|en saa|kieltäydyn)\b",
    r"(?:عذر[اًا]|آسف|أعتذر|لا أستطيع|لا يمكنني|لن أ)",
)
_START = 200
"""Characters searched: a refusal says so at its start, while a story may well contain someone who is sorry."""


def refuses(response: str, patterns: regex.Pattern[str]) -> bool:
    """Whether a response begins with one of the patterns."""
    return bool(patterns.search(response[:_START].replace("’", "'")))


def compiled(patterns: Iterable[str], where: str) -> regex.Pattern[str]:
    """A pattern that matches any of these, ignoring case.

    Raises:
        UserError: one is not a valid regular expression; `where` names it in the message.
    """
    patterns = list(patterns)
    for pattern in patterns:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise UserError(
                where, f"{pattern} is not a valid regular expression ({error})", "Fix the phrase."
            ) from error
    return regex.compile("|".join(patterns), regex.IGNORECASE)
