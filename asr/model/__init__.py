"""The routed model directory and the model that it holds: ledger, contract, features, answers."""
