"""The ways into the model folder that other libraries take: adapters, each imported only where its library is used."""
