"""Ask a server that ``asr serve demo/out/model`` has started, with OpenAI's client.

Run as:  python demo/ask.py [URL]          (pip install openai)
"""

from __future__ import annotations

import sys

from openai import OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTIONS = ("rent is due on 3 august 2025. iso please", "what is nineteen plus twenty-three?")

client = OpenAI(base_url=f"{URL}/v1", api_key="none")
for question in QUESTIONS:
    answer = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": question}], max_tokens=24
    )
    route = answer.model_extra["asr"]
    print(
        f"{question}\n  {route['adapter']} ({route['route']}): {answer.choices[0].message.content}"
    )
