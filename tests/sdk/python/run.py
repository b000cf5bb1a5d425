"""Runs every check of the Python SDKs against a running sidekey; see harness.py for what it is given."""

import anthropic_sdk
import openai_like
import others
from harness import finish

openai_like.run()
anthropic_sdk.run()
others.run()
finish()
