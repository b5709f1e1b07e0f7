package serve

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
)

func (s *server) serveHTTP(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.echo(w, r, http.StatusOK) })
	mux.HandleFunc("/health", s.health)
	mux.HandleFunc("/unready", func(w http.ResponseWriter, r *http.Request) { s.failing.Store(true); s.echo(w, r, http.StatusOK) })
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) { s.failing.Store(false); s.echo(w, r, http.StatusOK) })
	mux.HandleFunc("/sleep", s.sleep)
	mux.HandleFunc("/stream", s.stream)
	mux.HandleFunc("/status/{code}", s.status)
	mux.HandleFunc("/ws", s.webSocket)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: mux, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *server) answer(r *http.Request) Answer {
	server := ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		server = a.String()
	}
	return Answer{
		Answer: talk.Answer{Pod: s.name, Client: r.RemoteAddr, Server: server, Proto: r.Proto, Got: readGot(r.Body)},
		Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(), Header: r.Header,
	}
}

func (s *server) echo(w http.ResponseWriter, r *http.Request, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Pod", s.name)
	w.WriteHeader(status)
	_, _ = w.Write(talk.Encode(s.answer(r))) // the client may be gone
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	if s.failing.Load() {
		s.echo(w, r, http.StatusServiceUnavailable)
		return
	}
	s.echo(w, r, http.StatusOK)
}

func (s *server) sleep(w http.ResponseWriter, r *http.Request) {
	ms, ok := number(w, r, "ms", 0)
	if !ok {
		return
	}
	pause(r.Context(), time.Duration(ms)*time.Millisecond)
	s.echo(w, r, http.StatusOK)
}

func (s *server) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "expected /status/CODE with a status from 200 to 599", http.StatusBadRequest)
		return
	}
	s.echo(w, r, code)
}

// stream sends bytes. It flushes them piece by piece when they are spread over time.
func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	total, ok1 := number(w, r, "bytes", 1<<20)
	if !ok1 {
		return
	}
	ms, ok2 := number(w, r, "ms", 0)
	if !ok2 {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Pod", s.name)
	chunk := int64(64 << 10)
	pieces := int64(1)
	if ms > 0 {
		pieces = min(max(1, ms/10), 100)
		chunk = min(chunk, max(1, total/pieces))
	}
	buf := make([]byte, chunk)
	for i := range buf {
		buf[i] = byte('a' + i%26)
	}
	flush := http.NewResponseController(w)
	gap := time.Duration(ms) * time.Millisecond / time.Duration((total+chunk-1)/chunk+1)
	for total > 0 && r.Context().Err() == nil {
		n, err := w.Write(buf[:min(chunk, total)])
		if err != nil {
			return
		}
		total -= int64(n)
		if ms > 0 {
			_ = flush.Flush() // a failure only delays what the client sees
			pause(r.Context(), gap)
		}
	}
}

// number reads a parameter that must not be negative.
func number(w http.ResponseWriter, r *http.Request, name string, otherwise int64) (int64, bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "expected a number that is not negative: "+name+"="+strconv.Quote(text), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// webSocket answers every message.
func (s *server) webSocket(w http.ResponseWriter, r *http.Request) {
	answer := s.answer(r)
	answer.Proto = "websocket"
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // from any origin
	if err != nil {
		return // Accept has answered already
	}
	defer c.CloseNow()
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil {
			return
		}
		answer.Got = string(msg)
		if err := c.Write(r.Context(), kind, talk.Encode(answer)); err != nil {
			return
		}
	}
}
