"""The gateway. Its gRPC speaks TLS 1.3 and nothing older: set here, before anything imports grpc.

gRPC has no setting for it. Without a cipher suite that goes with our ECDSA certificates, TLS 1.2 fails and 1.3, whose
suites are its own, goes on. gRPC reads the variable when it is imported, and this file is read before all others of the
program. What passes nevertheless, the agent refuses at each call.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
