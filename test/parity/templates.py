"""Reads {templates: [source], dialogues: [{messages, tools?}]} from stdin and prints, for every template, what transformers makes of every
dialogue without and with a generation prompt: [text or null, text or null, …]. null: it refuses or fails.

    python test/parity/templates.py < job.json
"""

import json
import sys
from datetime import datetime

from transformers.utils import chat_template_utils as utils


class FixedDate(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 5, 7, 8, 9)


def main() -> None:
    utils.datetime = FixedDate
    job = json.loads(sys.stdin.read())
    results = []
    for source in job["templates"]:
        rendered = []
        for dialogue in job["dialogues"]:
            for add_generation_prompt in (False, True):
                try:
                    messages = utils._normalize_chat_messages(dialogue["messages"])
                    texts, _ = utils.render_jinja_template(
                        [messages],
                        tools=dialogue.get("tools"),
                        chat_template=source,
                        add_generation_prompt=add_generation_prompt,
                        **job["roles"],
                    )
                    rendered.append(texts[0])
                except Exception as error:  # the template refuses the messages, or fails
                    rendered.append(None if not job.get("reasons") else {"error": f"{type(error).__name__}: {error}"})
        results.append(rendered)
    json.dump(results, sys.stdout)


main()
