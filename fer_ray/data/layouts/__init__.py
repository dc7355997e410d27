"""The layouts that people have labeled faces in, each read to the same samples; nothing is decoded here."""
