"""Ask one question and print the answer as it comes: python examples/ask.py "What is 23 + 45?" """

import sys

import qwen35

question = " ".join(sys.argv[1:]) or "What is 23 + 45?"

with qwen35.load("tiny") as model:
    stream = model.chat(question)
    for token in stream:
        if token.kind == "text":
            print(token.text, end="", flush=True)
    print()
    result = stream.result()
    print(f"({result.finish_reason}, {result.usage.completion_tokens} tokens)", file=sys.stderr)
