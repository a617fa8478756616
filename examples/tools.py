"""A tool loop: the model asks for a function, gets its result, and answers with it."""

import json

import qwen35

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def get_weather(city: str) -> dict[str, object]:
    """Stands for a real service."""
    return {"city": city, "sky": "clear", "celsius": 21}


def main() -> None:
    """Ask until the model answers without calling."""
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "What is the weather in Paris?"}
    ]
    with qwen35.load("tiny") as model:
        for _ in range(3):
            answer = model.chat(messages, tools=TOOLS, max_tokens=200, temperature=0).result()
            if not answer.tool_calls:
                break
            messages.append(
                {
                    "role": "assistant",
                    "content": answer.text,
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {"name": call.name, "arguments": call.arguments},
                        }
                        for call in answer.tool_calls
                    ],
                }
            )
            for call in answer.tool_calls:
                known = call.name == "get_weather" and set(call.arguments) == {"city"}
                result = get_weather(**call.arguments) if known else {"error": "no such call"}
                print(f"{call.name}({call.arguments}) -> {result}")
                content = json.dumps(result)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        print(answer.text)


if __name__ == "__main__":
    main()
