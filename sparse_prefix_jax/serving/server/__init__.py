"""An HTTP interface in the form of OpenAI's, thin: Starlette over a scheduler."""
