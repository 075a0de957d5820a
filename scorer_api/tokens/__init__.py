"""Where the tokens of prompts and chats come from: a live engine of the model, or a tokenizer of our own."""
