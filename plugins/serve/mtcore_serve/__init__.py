"""The online server: every task of a bundle behind one endpoint, and one forward pass a document."""
