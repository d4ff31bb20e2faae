"""Language models behind one port: the OpenAI wire, any AutoGen client, and the offline demonstration."""
