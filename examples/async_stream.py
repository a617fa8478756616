"""Two answers at once in asyncio, each on a session of its own; a timeout cancels cleanly."""

import asyncio

import qwen35


async def ask(model: qwen35.Model, question: str) -> str:
    """The answer to one question."""
    async with model.chat(question, enable_thinking=False, max_tokens=100) as stream:
        return "".join([token.text async for token in stream if token.kind == "text"])


async def read(stream: qwen35.TokenStream) -> None:
    """Take all tokens."""
    async with stream:
        async for _ in stream:
            pass


async def main() -> None:
    """Ask both, then one that is given up."""
    with qwen35.load("tiny") as model:
        print(await asyncio.gather(ask(model, "What is 2 + 3?"), ask(model, "What is 4 + 5?")))
        stream = model.generate("Once", max_tokens=5000, ignore_eos=True)
        try:
            await asyncio.wait_for(read(stream), timeout=0.05)
        except asyncio.TimeoutError:
            result = stream.result()
            print(result.finish_reason, "after", result.usage.completion_tokens, "tokens")


asyncio.run(main())
