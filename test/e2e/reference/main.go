// Command reference is what a function is compared with: a Knative Service of a few lines, that answers with a page or a pixel, or hands one mail to the relay.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/smtp"
	"net/url"
	"os"
	"time"
)

func main() {
	http.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<!doctype html><title>reference</title>")
	})
	http.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		relay, err := url.Parse(os.Getenv("ONDA_SMTP_URL"))
		if err == nil {
			to := r.URL.Query().Get("to")
			err = smtp.SendMail(relay.Host, nil, "a@reference.example", []string{to}, fmt.Appendf(nil, "Message-ID: <%d@reference.example>\r\nSubject: reference\r\n\r\nA mail.\r\n", time.Now().UnixNano()))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}
