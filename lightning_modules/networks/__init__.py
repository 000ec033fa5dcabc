"""Networks: plain nn.Modules that know torch and nothing of Lightning, data or losses."""
