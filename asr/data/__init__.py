"""Data: from rows of a file to token ids, label masks and pool masks.

``records`` (rows) -> ``formats`` (examples) -> ``load`` (a domain's data), ``cut`` (dev and
calibration), ``views`` (templated, bare) -> ``encode`` and ``prompt`` (token ids). Works on plain
Python, a tokenizer and a :class:`asr.base.chat_template.ChatTemplate`; no model is needed.
"""
