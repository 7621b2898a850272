"""The shell around the fleet's machine: links to cars, answers to gateways, deeds for effects."""
