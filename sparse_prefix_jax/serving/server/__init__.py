"""An HTTP interface in the form of OpenAI's: Starlette over a scheduler."""
