"""What `rmsjit.save` and `rmsjit.load` are made of."""
