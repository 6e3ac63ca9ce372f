"""Images that nobody has labelled: what models say of them, and how sure they are."""
