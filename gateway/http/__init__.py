"""Door: HTTP. Everything that browsers, billing modules and curl see of the gateway; the only room that knows the web.

app.py puts it together: journal (access log, last resort) around access (who may call) around the paths.
calls.py says what a call is; account.py, server.py and system.py declare theirs, and both the routes and the OpenAPI
document are made from those declarations. link.py has the one-time link's pages.
"""
