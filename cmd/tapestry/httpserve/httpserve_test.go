package httpserve

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"tapestry.dev/tapestry/share/descriptors"
	"tapestry.dev/tapestry/test/await"
)

// Another user of this machine opens hundreds of connections and sends nothing or half a request. Other clients are
// still answered, and the flood does not use up the node's descriptors.
func TestFlood(t *testing.T) {
	for name, says := range map[string]string{
		"nothing":        "",
		"half a line":    "GET /he",
		"half a request": "GET / HTTP/1.1\r\nHost: x\r\nCookie: " + strings.Repeat("y", 1000),
		"half a body":    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			// The limit is so long that it ends no connection of the flood.
			go func() {
				done <- Until(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, "well")
				}), 10*await.Patience)
			}()
			before := openFiles(t)
			const flood = 300
			for range flood {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = io.WriteString(c, says) // the server may have closed it already
			}
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: await.Patience}
			res, err := client.Get("http://" + l.Addr().String() + "/")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || string(body) != "well" {
				t.Errorf("got %q, %v", body, err)
			}
			// A client was answered, so all connections before it were accepted.
			if n, most := openFiles(t)-before-flood, descriptors.Ours().Of(descriptors.Reports); n > most {
				t.Errorf("the server has %d descriptors, want %d at most", n, most)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
