// net/http of Go: server PORT.
package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
)

func main() {
	secret := make([]byte, 8)
	if _, err := rand.Read(secret); err != nil {
		panic(err)
	}
	var count int64
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		mine := atomic.AddInt64(&count, 1)
		work := 0
		for i := 0; i < 1000; i++ {
			work += i * i
		}
		w.Header().Set("Connection", "close")
		fmt.Fprintf(w, "%x %d %d", secret, mine, work)
	})
	panic(http.ListenAndServe("0.0.0.0:"+os.Args[1], nil))
}
