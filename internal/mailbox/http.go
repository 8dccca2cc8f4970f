package mailbox

import "net/http"

func (s *Server) Handler() http.Handler { return http.NotFoundHandler() }
