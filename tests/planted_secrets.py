"""Secrets and private names to plant, put together here so that no file of the repository holds one whole."""

from __future__ import annotations

MIXED = "a1B2c3D4e5F6g7H8i9J0"
HEX = "0123456789abcdef"

SECRETS = {
    "hugging face": "hf_" + MIXED * 2,
    "hugging face organisation": "api_org_" + MIXED * 2,
    "openai old": "sk-" + MIXED + "T3Blbk" + "FJ" + MIXED,
    "openai project": "sk-" + "proj-" + MIXED * 3,
    "anthropic": "sk-" + "ant-api03-" + MIXED * 3,
    "openrouter": "sk-" + "or-v1-" + HEX * 4,
    "github classic": "ghp_" + MIXED * 2,
    "github fine": "github_pat_" + MIXED * 3,
    "github app": "ghs_" + MIXED * 2,
    "gitlab": "glpat-" + MIXED,
    "aws": "AKIA" + "ABCDEFGH12345678",
    "aws session": "ASIA" + "ABCDEFGH12345678",
    "google": "AIza" + (MIXED * 2)[:35],
    "google oauth": "ya29." + MIXED * 2,
    "slack": "xoxb-" + "123456789012-" + MIXED,
    "stripe": "sk_" + "live_" + MIXED,
    "pypi": "pypi-" + "AgEI" + MIXED * 4,
    "npm": "npm_" + MIXED * 2,
    "sendgrid": "SG." + MIXED + "." + MIXED * 2,
    "mailchimp": HEX * 2 + "-us12",
    "twilio": "SK" + HEX * 2,
    "telegram": "123456789:" + "AA" + (MIXED * 2)[:33],
    "discord": "M" + (MIXED * 2)[:23] + ".abcdef." + (MIXED * 2)[:27],
    "azure": "Account" + "Key=" + MIXED * 4 + "==",
    "databricks": "dapi" + HEX * 2,
    "groq": "gsk_" + MIXED * 3,
    "replicate": "r8_" + MIXED * 2,
    "digitalocean": "dop_v1_" + HEX * 4,
    "wandb": "WANDB_API_" + "KEY=" + HEX * 2 + "01234567",
    "comet": "comet_api_" + 'key: "' + MIXED * 2 + '"',
    "password": "db_pass" + "word = " + MIXED,
    "aws secret": "aws_secret_" + "access_key=" + MIXED * 2,
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "openssh key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "jwt": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0." + MIXED,
    "address": "https://ann:" + MIXED + "@example.org/x",
    "database": "postgres://ann:" + MIXED + "@db.example.org:5432/x",
}
"""What it is → the secret."""
PATHS = {
    "home": "/home/ann/models/base",
    "mac": "/Users/ann/models/base",
    "root": "/root/.cache/huggingface/hub",
    "scratch": "/scratch/project_7/ann/base",
    "workspace": "/workspace/secret-project/out",
    "mount": "/mnt/data/ann",
    "temporary": "/tmp/ann-run/out",
    "windows": "C:\\Users\\ann\\base",
    "windows in JSON": "C:\\\\Users\\\\ann\\\\base",
    "share": "\\\\fileserver\\ann\\base",
    "tilde": "~/models/base",
    "other's tilde": "~ann/models/base",
    "file address": "file:///home/ann/base",
    "notebook": "/content/drive/MyDrive/base",
    "kaggle": "/kaggle/working/out",
    "cluster": "/gpfs/work/ann/base",
}
"""Where it is → the path."""
