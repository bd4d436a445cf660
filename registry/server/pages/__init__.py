"""Pages for people: the registry in a browser.

Made on the server, without script, and with nothing from elsewhere. A page changes nothing, reads a
bounded number of rows, and may be read by whoever may read the rest; paths on disk and SQL are for
administrators. What is shown is escaped twice over: HTML by the templates, and by `rendering` each
character that would not be seen as what it is.
"""
