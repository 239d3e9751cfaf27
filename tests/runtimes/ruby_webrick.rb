# WEBrick: ruby_webrick.rb PORT.
require 'securerandom'
require 'webrick'

secret = SecureRandom.hex(8)
count = 0
lock = Mutex.new
quiet = WEBrick::Log.new(File::NULL)
server = WEBrick::HTTPServer.new(
  BindAddress: '0.0.0.0', Port: Integer(ARGV[0]), Logger: quiet, AccessLog: [], DoNotReverseLookup: true
)
server.mount_proc('/') do |_request, response|
  mine = lock.synchronize { count += 1 }
  response.keep_alive = false
  response.body = "#{secret} #{mine} #{(0...1000).sum { |i| i * i }}"
end
server.start
