"""What backends read into the text of a prompt: its forms, its syntax, the tokens that it takes."""
