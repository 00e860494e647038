"""The method's claims, tested in the small world: what is trained, how it is measured, and what the numbers say."""
