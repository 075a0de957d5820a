"""The OpenAI SDK and LangChain behind a router or a gateway: both take its address as that of OpenAI. Two turns of a chat with each."""

import os

from langchain_openai import ChatOpenAI
from openai import OpenAI

URL = os.environ.get("ROUTER_URL", "http://127.0.0.1:8000/v1")
MODEL = os.environ.get("MODEL", "demo/chat")
QUESTION = " ".join(f"word-{number}" for number in range(200))

client = OpenAI(base_url=URL, api_key="none")
messages = [{"role": "user", "content": QUESTION}]
for _ in range(2):
    answer = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
    print("OpenAI:", answer)  # noqa: T201
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and what else?"}]

chat = ChatOpenAI(base_url=URL, model=MODEL, api_key="none")
turns = [("human", f"LangChain asks: {QUESTION}")]
for _ in range(2):
    answer = "".join(chunk.text for chunk in chat.stream(turns))
    print("LangChain:", answer)  # noqa: T201
    turns += [("ai", answer), ("human", "and what else?")]
