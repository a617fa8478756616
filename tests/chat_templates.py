"""Templates for tests: one in Qwen's format, with what the released ones use, and snippets.

Reasoning is kept after the last question only, tool calls are XML, tool results go into a user
turn.
"""

QWEN_STYLE = """\
{%- set count = namespace(images=0, videos=0) %}
{%- macro text_of(content, counting, in_system=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image' in part %}
                {%- if in_system %}
                    {{- raise_exception('No images in a system message.') }}
                {%- endif %}
                {%- if counting %}
                    {%- set count.images = count.images + 1 %}
                {%- endif %}
                {%- if add_vision_id %}
                    {{- 'Picture ' ~ count.images ~ ': ' }}
                {%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('What is this part?') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is not none and content is defined %}
        {{- raise_exception('What is this content?') }}
    {%- endif %}
{%- endmacro %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\\n# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nCall as <tool_call>\\n<function=NAME>\\n<parameter=P>\\n' }}
    {{- 'value\\n</parameter>\\n</function>\\n</tool_call>' }}
    {%- if messages[0].role == 'system' %}
        {{- '\\n\\n' + text_of(messages[0].content, false, true)|trim }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {%- set content = text_of(messages[0].content, false, true)|trim %}
    {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, question=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.question = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text_of(message.content, true)|trim %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n') %}
            {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.question %}
            {{- '<think>\\n' + thought|trim + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\\n\\n' if loop.first and content else '' if loop.first else '\\n' }}
            {{- '<tool_call>\\n<function=' + call.name + '>\\n' }}
            {%- for name, value in call.arguments|items %}
                {{- '<parameter=' + name + '>\\n' }}
                {%- set nested = value is mapping or (value is sequence and value is not string) %}
                {{- value | tojson | safe if nested else value | string }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""

# One construct each, to compare with another renderer.
JINJA = {
    "whitespace": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "loop variables": "{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}{% endfor %}",
    "loop over a lazy value": "{% for x in [1, 2, 3]|select('odd') %}{{ loop.length }}{% endfor %}",
    "loop over nothing": "{% for x in nothing %}{% else %}none{% endfor %}",
    "loop with condition": "{% for x in range(9) if x % 2 %}{{ x }}{{ loop.length }}{% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], [3]] recursive %}{{ loop.depth }}"
    "{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
    "break and continue": "{% for x in range(9) %}{% if x == 1 %}{% continue %}{% endif %}"
    "{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "macros": "{% macro m(a, b=2) %}{{ a }}-{{ b }}-{{ varargs }}-"
    "{{ caller() if caller else '' }}"
    "{% endmacro %}{{ m(1) }}{{ m(1, 3, 4) }}{% call m(5) %}called{% endcall %}",
    "set block and filter block": "{% set x %}{{ 1 }}a{% endset %}{{ x|upper }}"
    "{% filter upper %}b{{ x }}{% endfilter %}",
    "namespace": "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.self }}",
    "operators": "{{ 1 ~ 'a' ~ none ~ 2.5 }}{{ [1] + [2] }}{{ 'ab' * 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}"
    "{{ '%s-%d' % ('x', 3) }}{{ 7 // 2 }}{{ 'a' in 'abc' }}{{ 1 < 2 <= 2 }}",
    "tojson": "{{ {'b': [1, none, true], 'a': '<ü\\'>'} | tojson }}"
    "{{ {'b': 1, 'a': 2}|tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}"
    "{{ 'ü'|tojson(ensure_ascii=true) }}",
    "filters": "{{ 'a b'|title }}{{ [3, 1, 2]|sort|join(',') }}{{ ' x '|trim }}"
    "{{ {'a': 1}|items|list }}"
    "{{ [1, 2, 3]|map('string')|join('-') }}{{ [{'a': 1}, {'a': 2}]|map(attribute='a')|list }}"
    "{{ [1, 2]|sum }}{{ [{'a': 1}, {'a': 2}]|sum(attribute='a', start=3) }}"
    "{{ nothing|default('d') }}"
    "{{ 'abc'|replace('b', 'x') }}{{ 'a\nb'|indent(2) }}{{ [1, 1, 2]|unique|list }}"
    "{{ '3'|int + 1 }}"
    "{{ {'b': 1, 'a': 2}|dictsort }}{{ [1, 2, 3]|batch(2)|list }}{{ 1.257|round(1) }}"
    "{{ 'abc'|length }}"
    "{{ 'a'|center(5) }}{{ '%05d'|format(7) }}{{ [1, 2]|first }}{{ [1, 2]|last }}"
    "{{ 'abc'|reverse }}"
    "{{ [{'k': 1, 'v': 2}, {'k': 1, 'v': 3}]|groupby('k')|length }}"
    "{{ [1, 2, 3]|reject('odd')|list }}",
    "string methods": "{{ 'a,b'.split(',') }}{{ 'x'.join(['1', '2']) }}"
    "{{ '{} {b:>4}'.format(1, b=2) }}"
    "{{ '  a'.lstrip() }}{{ 'abc'.startswith('ab') }}{{ 'a'.center(3) }}"
    "{{ 'aa'.replace('a', 'b', 1) }}"
    "{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.items()|list }}{{ {'a': 1}.keys()|list }}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ {}.a }}{{ [1][5] is undefined }}",
    "slices": "{{ [1, 2, 3][::-1] }}{{ 'abc'[1:] }}{{ [1, 2, 3][-1] }}",
    "generation": "a{% generation %}b{{ 1 }}{% endgeneration %}c",
    "escapes": "{{ '<a>'|e }}{{ '<a>' }}{{ ('<a>'|safe) ~ '<b>' }}",
    "tuples": "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}"
    "{{ b }}{% endfor %}{% set x, y = 1, 2 %}{{ y }}",
    "conditional": "{{ 'a' if false }}{{ 1 if true else 2 }}",
    "tests": "{{ 1 is number }}{{ {} is mapping }}{{ 'a' is string }}{{ true is boolean }}"
    "{{ [] is sequence }}",
    "date": "{{ strftime_now('%Y') }}",
    "dict": "{{ dict(a=1) }}{{ dict({'b': 2}, c=3) }}",
}
