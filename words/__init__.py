"""Small models of single words, trained on MFCCs: Audio word2vec, Speech2vec, Siamese, LEE; `wavcse words`."""
