"""The database: transactions, what its errors mean, how vectors are stored, figures read from it."""
