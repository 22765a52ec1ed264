"""Door: HTTP. Everything that browsers, billing modules and curl see of the gateway; the only room that knows the web.

app.py puts it together: journal (access log, last resort) around access (who may call) around the paths. v1/ has those
of the API, pages/ what people see; they are strangers, and what both need is in the files here.
"""
