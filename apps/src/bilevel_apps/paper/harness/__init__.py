"""What every item of the paper shares: the contract, the list, the run, the cache."""
