"""The OpenAI wire, pure: JSON shapes, decoders, encoders and framing."""
