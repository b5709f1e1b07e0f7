// Command serve is the server of a pod that ends as servers should, and waits for nothing before it does: when it is
// told to end, it closes its socket, answers whom it has accepted, and ends. It answers one HTTP request of each
// connection, with its host's name.
//
//	serve ADDRESS
//
// It is not net/http's Server, whose Shutdown leaves connections unanswered that were accepted and have not asked yet.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("give one argument, the address to listen on, as :8080")
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		return err
	}
	go func() {
		<-told.Done()
		fmt.Println("told to end")
		if err := l.(*net.TCPListener).SetDeadline(time.Now()); err != nil { // ends Accept
			fmt.Fprintln(os.Stderr, "serve:", err)
		}
	}()
	var answers sync.WaitGroup
	defer answers.Wait()
	take := func(c net.Conn) {
		answers.Add(1)
		go func() {
			defer answers.Done()
			if err := answer(c, name); err != nil {
				fmt.Fprintln(os.Stderr, "serve:", err)
			}
		}()
	}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			take(c)
		case told.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
			err := errors.Join(rest(l.(*net.TCPListener), take), l.Close())
			fmt.Println("closed its socket")
			return err
		default:
			return errors.Join(err, l.Close())
		}
	}
}

// rest accepts the connections that are there and that nobody has accepted yet. The kernel would reset them when the
// socket is closed. It waits for none.
func rest(l *net.TCPListener, take func(net.Conn)) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var accepted error
	err = raw.Control(func(fd uintptr) {
		for {
			nfd, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != nil {
				if !errors.Is(err, unix.EAGAIN) {
					accepted = err
				}
				return
			}
			f := os.NewFile(uintptr(nfd), "connection")
			c, err := net.FileConn(f)
			if err = errors.Join(err, f.Close()); err != nil {
				accepted = err
				return
			}
			take(c)
		}
	})
	return errors.Join(err, accepted)
}

func answer(c net.Conn, name string) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil { // a pod has 30 s to end
		return err
	}
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
	return err
}
