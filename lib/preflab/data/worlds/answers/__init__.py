"""The short language: a line or two for each prompt, the right tool and the right second step."""
