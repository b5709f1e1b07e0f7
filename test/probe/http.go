package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
)

// Fetch is one HTTP request.
type Fetch struct {
	URL string
	// Connect is the address to connect to in place of the URL's, as in curl --connect-to; "" is the URL's.
	Connect string
	// HTTP2 asks for HTTP/2: by ALPN for https, with prior knowledge for http.
	HTTP2  bool
	Header map[string]string
}

// Fetched is the response to a Fetch.
type Fetched struct {
	Status int    `json:"status"`
	Proto  string `json:"proto"`
	Body   string `json:"body"`
	// Certificate is the common name of the server's certificate, or its first DNS name.
	Certificate string `json:"certificate,omitempty"`
	Error       string `json:"error,omitempty"`
}

const fetchTime = 10 * time.Second

func (f Fetch) client() *http.Client {
	t := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the demo makes its own certificates
		DisableKeepAlives: true,
		Protocols:         new(http.Protocols),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if f.Connect != "" {
				addr = f.Connect
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}
	t.Protocols.SetHTTP1(!f.HTTP2)
	t.Protocols.SetHTTP2(f.HTTP2)
	t.Protocols.SetUnencryptedHTTP2(f.HTTP2)
	return &http.Client{Transport: t, Timeout: fetchTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Get makes the request. A failure is part of the result.
func Get(ctx context.Context, f Fetch) Fetched {
	var out Fetched
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL, nil)
		if err != nil {
			return err
		}
		for k, v := range f.Header {
			req.Header.Set(k, v)
		}
		resp, err := f.client().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		out.Status, out.Proto = resp.StatusCode, resp.Proto
		if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
			cert := resp.TLS.PeerCertificates[0]
			if out.Certificate = cert.Subject.CommonName; len(cert.DNSNames) > 0 {
				out.Certificate = cert.DNSNames[0]
			}
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		out.Body = string(body)
		return err
	}()
	out.Error = talk.Why(err)
	return out
}

// WebSocket opens a WebSocket, sends a message and returns the answer.
func WebSocket(ctx context.Context, f Fetch, message string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	url := strings.Replace(f.URL, "http", "ws", 1)
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: f.client()})
	if err != nil {
		return "", err
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		return "", err
	}
	kind, got, err := c.Read(ctx)
	if err != nil {
		return "", err
	}
	if kind != websocket.MessageText {
		return "", fmt.Errorf("got a %s message, want text", kind)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil && !errors.Is(err, net.ErrClosed) {
		return "", err
	}
	return string(got), nil
}
