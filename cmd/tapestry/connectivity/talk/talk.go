// Package talk is what the pods of a connectivity test say to one another: a server that answers who it is, whom it
// sees and what it got, and clients that tell what came back. An answer is one line of JSON.
package talk

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"syscall"
)

// MaxGot bounds what an answer repeats of a request, in bytes.
const MaxGot = 64 << 10

// Answer is what a server says.
type Answer struct {
	// Pod is the server's name.
	Pod string `json:"pod"`
	// Client and Server are the two ends of the connection as the server sees them, "address:port".
	Client string `json:"client"`
	Server string `json:"server"`
	// Proto is "tcp" or "udp".
	Proto string `json:"proto"`
	// Got is what the client sent.
	Got string `json:"got"`
}

// Encode is v as one line of JSON.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte(`{"error":` + strconv.Quote(err.Error()) + `}`)
	}
	return append(b, '\n')
}

// Why is a client's error in few words: "refused", "timeout", or the error's text; "" for none.
func Why(err error) string {
	var ne net.Error
	switch {
	case err == nil:
		return ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	}
	return err.Error()
}
