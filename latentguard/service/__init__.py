"""The service: the guard and private generation over HTTPS, with access control, an audit log and a console."""
