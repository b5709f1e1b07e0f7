// Package talk is the protocol between the pods of a connectivity test. It has a server that answers with its name,
// the client's address and what it received, and clients that report the answer. An answer is one line of JSON.
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

// MaxGot is how many bytes of a request an answer repeats at most.
const MaxGot = 64 << 10

// Answer is the answer of a server.
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

// Encode returns v as one line of JSON.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte(`{"error":` + strconv.Quote(err.Error()) + `}`)
	}
	return append(b, '\n')
}

// Why describes a client's error in a few words: "refused", "timeout", or the error's text. It returns "" if there is
// no error.
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
